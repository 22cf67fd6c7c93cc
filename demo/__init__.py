"""The demo: two models on one memory budget, shared and split in halves, the same requests.

`python -m demo.install` fills the environment, `python -m demo` runs. It serves two models with
vLLM as it is, half of the budget each, and then with kvcached, which lets both use what the other
leaves. Load moves from one model to the other and back. Memory, speed and every answer are
compared. `--engine sglang` serves both models with SGLang, `--engine mixed` one with each engine.
"""
