"""Names of other programs for the fields of a request, for hints in error messages.

`Request` and the command line are strict: they do not accept these names. The errors say which
field or option has the effect.
"""

from collections.abc import Container

SYNONYMS = {
    # diffusers
    "generator": "seed",
    "num_images_per_prompt": "num_images",
    "scheduler": "sampler",
    "denoising_end": "high_noise_frac",
    "mask_image": "mask",
    "control_image": "controls",
    "controlnet_conditioning_scale": "controls",
    "timesteps": "schedule",
    "sigmas": "schedule",
    # AUTOMATIC1111, Forge and SD.Next
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "denoise": "strength",
    "denoising": "strength",
    "denoising_strength": "strength",
    "init_image": "image",
    "init_images": "image",
    "input_image": "image",
    "sampler_index": "sampler",
    "sampler_name": "sampler",
    "sampling_method": "sampler",
    "sampling_steps": "num_inference_steps",
    "noise_schedule": "schedule",
    "schedule_type": "schedule",
    "batch_size": "num_images",
    "batch_count": "num_images",
    "n_iter": "num_images",
    "hr_scale": "upscale",
    "hires_scale": "upscale",
    "hr_upscaler": "upscale_in",
    "hr_second_pass_steps": "refine_steps",
    "refiner_checkpoint": "refiner",
    "refiner_switch_at": "high_noise_frac",
    "inpainting_fill": "fill",
    "inpainting_mask_invert": "mask_invert",
    "inpaint_full_res_padding": "crop",
    "mask_padding": "crop",
    "resize_mode": "fit",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "clip_stop_at_last_layers": "clip_skip",
    # ComfyUI, InvokeAI, Fooocus, NovelAI
    "noise_seed": "seed",
    "positive": "prompt",
    "positive_prompt": "prompt",
    "text": "prompt",
    "uc": "negative_prompt",
    "neg_prompt": "negative_prompt",
    "image_number": "num_images",
    "upscale_by": "upscale",
    "scale_by": "upscale",
    # Replicate, OpenAI, fal
    "prompt_strength": "strength",
    "image_strength": "strength",
    "init_image_strength": "strength",
    "num_outputs": "num_images",
    "num_samples": "num_images",
    "num_steps": "num_inference_steps",
    "inference_steps": "num_inference_steps",
    "n": "num_images",
    "aspect_ratio": "size",
    "image_size": "size",
    "resolution": "size",
    "image_url": "image",
    "mask_url": "mask",
    "refine_prompt": "prompt_2",
    # Words that come to mind
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
    "images": "num_images",
    "control": "controls",
    "controlnet": "controls",
    "lora": "loras",
    "inpaint": "mask",
    "outpaint": "extend",
    "enlarge": "upscale",
}
"""Names of other programs, and the fields of `Request` that have the effect."""


def find_synonym(name: str) -> str | None:
    """Return the field of `Request` that another program gives a name, in any spelling."""
    return SYNONYMS.get(name.strip("-").replace("-", "_").casefold())


def describe_synonym(name: str, known: Container[str]) -> str:
    """Return the hint for an unknown field, to append to a message; "" without a synonym.

    Args:
        name: the unknown field.
        known: the fields that exist there.
    """
    field = find_synonym(name)
    if field is None or field not in known:
        return ""
    if name == "generator":
        return " Use seed, an integer, in place of a generator."
    return f" Use {field}."


def describe_value(field: str, value: object) -> str:
    """Return the hint for a value that has another meaning elsewhere, to append, or ""."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if field in ("seed", "subseed") and number and value == -1:
        return " Leave it out for a random seed."
    if field == "steps" and number:
        return " The number of steps is num_inference_steps."
    return ""
