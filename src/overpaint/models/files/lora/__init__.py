"""Read LoRA files of all trainers: their keys, tensors, PEFT folders and configs."""
