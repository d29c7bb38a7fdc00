"""Read the graphs of ComfyUI, and its prompts and names, which other programs have too."""
