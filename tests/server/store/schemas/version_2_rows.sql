-- Rows as programs with schema version 2 wrote them.
INSERT INTO jobs (id, "key", model, request, origin, webhook, priority, work, rank, state, attempt, crashes, owner, lease, canceling, created, started, ended, error) VALUES
    ('cb51a0e3ca6b78cd2fc1276e08b3eadf', '8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'miniature', '{"prompt": "l''\u00e9t\u00e9: \"na\u00efve\" \u5bb6\nsecond line; 100% {x} :y", "prompt_2": null, "negative_prompt": "", "negative_prompt_2": null, "image": null, "strength": null, "width": null, "height": null, "size": "native", "fit": null, "mask": null, "mask_from": null, "mask_invert": false, "mask_grow": 0, "mask_blur": 0, "extend": [0, 0, 0, 0], "task": null, "fill": null, "crop": "auto", "match_colours": true, "num_inference_steps": 30, "steps": "exact", "guidance_scale": 5.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7, "num_images": 1, "refiner": null, "refine": null, "high_noise_frac": 0.8, "refine_strength": 0.3, "refine_steps": null, "upscale": 1.0, "upscale_in": "pixels", "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5, "loras": [], "lora_lenient": false, "controls": [], "clip_skip": 0, "original_size": null, "crops_coords_top_left": [0, 0], "target_size": null, "negative_original_size": null, "negative_crops_coords_top_left": null, "negative_target_size": null}', '{"wire": "native", "output": {"kind": "png", "options": {}, "preview_every": 0}}', 'https://example.com/hook?a=1&b=50%25', 0, 12.5, 1763850050.25, 'queued', 0, 0, NULL, NULL, FALSE, 1763850000.25, NULL, NULL, NULL);
INSERT INTO jobs (id, "key", model, request, origin, webhook, priority, work, rank, state, attempt, crashes, owner, lease, canceling, created, started, ended, error) VALUES
    ('50af2e397a59979ec99a63f2638543b1', '', 'miniature', '{"prompt": "a house", "prompt_2": null, "negative_prompt": "", "negative_prompt_2": null, "image": {"file": "92b2fa58028958317e408bd84ecfa70f5ee35b121991dbc232c49d166353708b"}, "strength": 0.6, "width": null, "height": null, "size": "native", "fit": null, "mask": null, "mask_from": null, "mask_invert": false, "mask_grow": 0, "mask_blur": 0, "extend": [0, 0, 0, 0], "task": null, "fill": null, "crop": "auto", "match_colours": true, "num_inference_steps": 30, "steps": "exact", "guidance_scale": 5.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7, "num_images": 1, "refiner": null, "refine": null, "high_noise_frac": 0.8, "refine_strength": 0.3, "refine_steps": null, "upscale": 1.0, "upscale_in": "pixels", "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5, "loras": [], "lora_lenient": false, "controls": [], "clip_skip": 0, "original_size": null, "crops_coords_top_left": [0, 0], "target_size": null, "negative_original_size": null, "negative_crops_coords_top_left": null, "negative_target_size": null}', '{"wire": "native", "output": {"kind": "png", "options": {}, "preview_every": 0}}', NULL, -1, 12.5, 1763850050.25, 'queued', 0, 0, NULL, NULL, FALSE, 1763850000.25, NULL, NULL, NULL);
INSERT INTO jobs (id, "key", model, request, origin, webhook, priority, work, rank, state, attempt, crashes, owner, lease, canceling, created, started, ended, error) VALUES
    ('7ad7ec9c2b5e0bafcb30d05648d1acae', '8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'miniature', '{"prompt": "a house", "prompt_2": null, "negative_prompt": "", "negative_prompt_2": null, "image": null, "strength": null, "width": null, "height": null, "size": "native", "fit": null, "mask": null, "mask_from": null, "mask_invert": false, "mask_grow": 0, "mask_blur": 0, "extend": [0, 0, 0, 0], "task": null, "fill": null, "crop": "auto", "match_colours": true, "num_inference_steps": 30, "steps": "exact", "guidance_scale": 5.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7, "num_images": 1, "refiner": null, "refine": null, "high_noise_frac": 0.8, "refine_strength": 0.3, "refine_steps": null, "upscale": 1.0, "upscale_in": "pixels", "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5, "loras": [], "lora_lenient": false, "controls": [], "clip_skip": 0, "original_size": null, "crops_coords_top_left": [0, 0], "target_size": null, "negative_original_size": null, "negative_crops_coords_top_left": null, "negative_target_size": null}', '{"wire": "native", "output": {"kind": "png", "options": {}, "preview_every": 0}}', NULL, 0, 12.5, 1763850050.25, 'running', 3, 2, '0123456789abcdef0123456789abcdef', 1763850030.25, TRUE, 1763850000.25, 1763850001.25, NULL, NULL);
INSERT INTO jobs (id, "key", model, request, origin, webhook, priority, work, rank, state, attempt, crashes, owner, lease, canceling, created, started, ended, error) VALUES
    ('dc0097f68e694b11e556ad512d28ad37', '8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'miniature', '{"prompt": "a house", "prompt_2": null, "negative_prompt": "", "negative_prompt_2": null, "image": null, "strength": null, "width": null, "height": null, "size": "native", "fit": null, "mask": null, "mask_from": null, "mask_invert": false, "mask_grow": 0, "mask_blur": 0, "extend": [0, 0, 0, 0], "task": null, "fill": null, "crop": "auto", "match_colours": true, "num_inference_steps": 30, "steps": "exact", "guidance_scale": 5.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7, "num_images": 1, "refiner": null, "refine": null, "high_noise_frac": 0.8, "refine_strength": 0.3, "refine_steps": null, "upscale": 1.0, "upscale_in": "pixels", "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5, "loras": [], "lora_lenient": false, "controls": [], "clip_skip": 0, "original_size": null, "crops_coords_top_left": [0, 0], "target_size": null, "negative_original_size": null, "negative_crops_coords_top_left": null, "negative_target_size": null}', '{"wire": "native", "output": {"kind": "png", "options": {}, "preview_every": 0}}', NULL, 0, 12.5, 1763850050.25, 'failed', 1, 0, '0123456789abcdef0123456789abcdef', NULL, FALSE, 1763850000.25, 1763850001.25, 1763850009.75, 'the prompt: it failed.');
INSERT INTO jobs (id, "key", model, request, origin, webhook, priority, work, rank, state, attempt, crashes, owner, lease, canceling, created, started, ended, error, result) VALUES
    ('50578d5e51fe072b42d6726ed0ebe252', '8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'miniature', '{"prompt": "a house", "prompt_2": null, "negative_prompt": "", "negative_prompt_2": null, "image": null, "strength": null, "width": null, "height": null, "size": "native", "fit": null, "mask": null, "mask_from": null, "mask_invert": false, "mask_grow": 0, "mask_blur": 0, "extend": [0, 0, 0, 0], "task": null, "fill": null, "crop": "auto", "match_colours": true, "num_inference_steps": 30, "steps": "exact", "guidance_scale": 5.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7, "num_images": 1, "refiner": null, "refine": null, "high_noise_frac": 0.8, "refine_strength": 0.3, "refine_steps": null, "upscale": 1.0, "upscale_in": "pixels", "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5, "loras": [], "lora_lenient": false, "controls": [], "clip_skip": 0, "original_size": null, "crops_coords_top_left": [0, 0], "target_size": null, "negative_original_size": null, "negative_crops_coords_top_left": null, "negative_target_size": null}', '{"wire": "replicate", "base": "http://127.0.0.1:8000", "input": {"prompt": "a house", "seed": 7}, "output": {"kind": "png"}}', 'https://example.com/replicate', 0, 12.5, 1763850050.25, 'succeeded', 1, 0, '0123456789abcdef0123456789abcdef', NULL, FALSE, 1763850000.25, 1763850001.25, 1763850009.75, NULL, '{"files": ["1-0.png"], "seeds": [7], "sizes": [[64, 64]], "metadata": [{"seed": 7}]}');
INSERT INTO jobs (id, "key", model, request, origin, webhook, priority, work, rank, state, attempt, crashes, owner, lease, canceling, created, started, ended, error) VALUES
    ('6a7f311f025c183d06c5c83d8c168f6b', '8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'miniature', '{"prompt": "a house", "prompt_2": null, "negative_prompt": "", "negative_prompt_2": null, "image": null, "strength": null, "width": null, "height": null, "size": "native", "fit": null, "mask": null, "mask_from": null, "mask_invert": false, "mask_grow": 0, "mask_blur": 0, "extend": [0, 0, 0, 0], "task": null, "fill": null, "crop": "auto", "match_colours": true, "num_inference_steps": 30, "steps": "exact", "guidance_scale": 5.0, "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7, "num_images": 1, "refiner": null, "refine": null, "high_noise_frac": 0.8, "refine_strength": 0.3, "refine_steps": null, "upscale": 1.0, "upscale_in": "pixels", "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5, "loras": [], "lora_lenient": false, "controls": [], "clip_skip": 0, "original_size": null, "crops_coords_top_left": [0, 0], "target_size": null, "negative_original_size": null, "negative_crops_coords_top_left": null, "negative_target_size": null}', '{"wire": "replicate", "base": "http://127.0.0.1:8000", "input": {"prompt": "a house", "seed": 7}, "output": {"kind": "png"}}', NULL, 0, 12.5, 1763850050.25, 'canceled', 1, 0, '0123456789abcdef0123456789abcdef', NULL, FALSE, 1763850000.25, 1763850001.25, 1763850009.75, NULL);
INSERT INTO events (job, number, at, kind, body) VALUES
    ('cb51a0e3ca6b78cd2fc1276e08b3eadf', 1, 1763850000.25, 'queued', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('50af2e397a59979ec99a63f2638543b1', 1, 1763850000.25, 'queued', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('7ad7ec9c2b5e0bafcb30d05648d1acae', 1, 1763850000.25, 'queued', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('7ad7ec9c2b5e0bafcb30d05648d1acae', 2, 1763850001.25, 'started', '{"attempt": 1}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('7ad7ec9c2b5e0bafcb30d05648d1acae', 3, 1763850002.25, 'requeued', '{"crashes": 1}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('7ad7ec9c2b5e0bafcb30d05648d1acae', 4, 1763850003.25, 'started', '{"attempt": 2}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('7ad7ec9c2b5e0bafcb30d05648d1acae', 5, 1763850004.25, 'notice', '{"message": "the size was rounded: 64\u00d764"}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('dc0097f68e694b11e556ad512d28ad37', 1, 1763850000.25, 'queued', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('dc0097f68e694b11e556ad512d28ad37', 2, 1763850001.25, 'started', '{"attempt": 1}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('dc0097f68e694b11e556ad512d28ad37', 3, 1763850009.75, 'failed', '{"error": "the prompt: it failed."}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('50578d5e51fe072b42d6726ed0ebe252', 1, 1763850000.25, 'queued', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('50578d5e51fe072b42d6726ed0ebe252', 2, 1763850001.25, 'started', '{"attempt": 1}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('50578d5e51fe072b42d6726ed0ebe252', 3, 1763850009.75, 'succeeded', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('6a7f311f025c183d06c5c83d8c168f6b', 1, 1763850000.25, 'queued', '{}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('6a7f311f025c183d06c5c83d8c168f6b', 2, 1763850001.25, 'started', '{"attempt": 1}');
INSERT INTO events (job, number, at, kind, body) VALUES
    ('6a7f311f025c183d06c5c83d8c168f6b', 3, 1763850009.75, 'canceled', '{}');
INSERT INTO tokens ("key", token, body, job) VALUES
    ('8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'a token; of the client''s', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', '50578d5e51fe072b42d6726ed0ebe252');
INSERT INTO uses (job, file) VALUES
    ('50af2e397a59979ec99a63f2638543b1', '92b2fa58028958317e408bd84ecfa70f5ee35b121991dbc232c49d166353708b');
INSERT INTO outbox (job, kind, state, due, tries, turn) VALUES
    ('cb51a0e3ca6b78cd2fc1276e08b3eadf', 'start', 'later', 0.0, 0, 0);
INSERT INTO outbox (job, kind, state, due, tries, turn) VALUES
    ('cb51a0e3ca6b78cd2fc1276e08b3eadf', 'logs', 'later', 0.0, 0, 0);
INSERT INTO outbox (job, kind, state, due, tries, turn) VALUES
    ('cb51a0e3ca6b78cd2fc1276e08b3eadf', 'completed', 'later', 0.0, 0, 0);
INSERT INTO outbox (job, kind, state, due, tries, turn) VALUES
    ('50578d5e51fe072b42d6726ed0ebe252', 'start', 'delivered', 1763850003.25, 1, 3);
INSERT INTO outbox (job, kind, state, due, tries, turn) VALUES
    ('50578d5e51fe072b42d6726ed0ebe252', 'completed', 'due', 1763850040.25, 2, 0);
INSERT INTO deliveries (post, at, status, error, seconds)
    SELECT id, 1763850003.25, 204, NULL, 0.125 FROM outbox WHERE job = '50578d5e51fe072b42d6726ed0ebe252' AND kind = 'start';
INSERT INTO deliveries (post, at, status, error, seconds)
    SELECT id, 1763850010.25, 500, NULL, 0.25 FROM outbox WHERE job = '50578d5e51fe072b42d6726ed0ebe252' AND kind = 'completed';
INSERT INTO deliveries (post, at, status, error, seconds)
    SELECT id, 1763850016.25, NULL, 'ConnectError: refused', 15.0 FROM outbox WHERE job = '50578d5e51fe072b42d6726ed0ebe252' AND kind = 'completed';
INSERT INTO secrets ("key", secret) VALUES
    ('8cb8a94c34ce53add38d4b38aeef077210c06f66f4cfa4a0f383a42dca15138b', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
INSERT INTO secrets ("key", secret) VALUES
    ('links', 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD');
INSERT INTO about (version) VALUES
    (2);
