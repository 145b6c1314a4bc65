"""Trains with PyTorch on request; `../worker_process.py` has the protocol.

    python worker.py JOB.json

The job:
    peer        a key of peers.PEERS
    weights     a Hugging Face folder with float32 weights
    batch       an .npz with image uint8 [B, S, S, 3], tokens int32 [B, T] and
                target bool [B, T]
    multipliers name of a tensor in the files -> factor on the learning rate, or null
                for a frozen one
    optimizer   peak_lr, beta1, beta2, clip_norm
    device      "cpu" or "cuda"
    dtype       "float32" or "bfloat16", of the computation
    threads     of the CPU
    compile     a mode of torch.compile, or empty for eager
"""

import json
import os
import sys
import time

import peers
import torch
import training
import transformers


def main(job_path: str) -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print, which would be taken for answers
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    # As many as `on_cpus` leaves to the process.
    torch.set_num_threads(job["threads"])
    # Full float32, where it is float32.
    torch.backends.cudnn.allow_tf32 = False
    on_gpu = job["device"] == "cuda"
    try:
        step = training.prepared(job, *peers.PEERS[job["peer"]])
        about = {
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        print(json.dumps({"ready": about}), file=answers)
        for line in sys.stdin:
            steps = json.loads(line)["steps"]
            start = time.perf_counter()
            # Kept on the device until all steps are under way.
            losses = [step() for _ in range(steps)]
            losses = [loss.item() for loss in losses]  # waits for the device
            seconds = (time.perf_counter() - start) / steps
            memory = torch.cuda.max_memory_allocated() if on_gpu else None
            answer = {"seconds": seconds, "losses": losses, "peak_bytes": memory}
            print(json.dumps(answer), file=answers)
    except torch.OutOfMemoryError as error:
        print(json.dumps({"out_of_memory": str(error)[:500]}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
