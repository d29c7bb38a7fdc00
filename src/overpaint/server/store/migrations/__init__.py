"""Migrations of older job stores: one revision file per schema version, run by Alembic.

A revision's name is its schema version with four digits. `tables` describes the newest one.
"""
