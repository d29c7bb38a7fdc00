"""The routes of Replicate that describe the account, its deployments and the hardware."""

from typing import Any

from fastapi import APIRouter

from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.replicate.protocol import (
    ACCOUNT,
    HARDWARE,
    MODEL_OWNER,
    deployment_view,
    get_model_or_404,
    make_page,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import PROBLEM_RESPONSES, error_response

router = APIRouter(
    prefix="/v1",
    tags=["Replicate"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)


@router.get("/account")
async def get_account(key: KeyDep) -> dict[str, Any]:
    """Describe the account that owns the models of this server."""
    return ACCOUNT


@router.get("/hardware")
async def list_hardware(key: KeyDep) -> list[dict[str, str]]:
    """List the hardware of this server."""
    return [HARDWARE]


@router.get("/collections")
async def list_collections(key: KeyDep) -> dict[str, Any]:
    """List collections of models; there are none."""
    return make_page([])


@router.get("/trainings")
async def list_trainings(key: KeyDep) -> dict[str, Any]:
    """List trainings; there are none."""
    return make_page([])


@router.get("/deployments")
async def list_deployments(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List deployments: every model of this server is one."""
    return make_page([deployment_view(model, MODEL_OWNER) for model in service.settings.models])


@router.get("/deployments/{owner}/{name}")
async def get_deployment(owner: str, name: str, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Describe the deployment with the name of a model."""
    return deployment_view(get_model_or_404(service, owner, name), owner)
