"""The demo: one model, two servers, the same requests, and who holds how much memory.

`python -m demo.install` fills the environment, `python -m demo` runs. It starts `vllm serve`
twice with the same flags, first as vLLM is, then with kvcached's elastic KV cache, sends both
the same bursts of requests, and compares memory, speed and every answer.
"""
