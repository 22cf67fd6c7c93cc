"""What an engine is made to do. Each scenario takes a session and returns plain data.

A scenario judges nothing: the same one runs on a vanilla and on an elastic engine, and the
tests compare. Prompts are drawn from their names, so that both engines get the same ones.
"""

from scenarios.aborting import abort_half
from scenarios.adapters import adapters
from scenarios.announcing import announced
from scenarios.breaking import touch_committed_block, touch_uncommitted_block
from scenarios.greedy import long_answer, long_prompt_in_chunks, mixed_lengths
from scenarios.limits import greatest_requests, overlong_prompt
from scenarios.memory import forget, grow_and_shrink, lie_idle, wait_to_be_killed
from scenarios.planting import look_at_unwritten_memory, plan_with_an_absent_block
from scenarios.pooling import embed
from scenarios.prefixes import reset_prefix_cache, shared_prefixes
from scenarios.sampling import several_answers
from scenarios.searching import beams, logprobs
from scenarios.speculating import guessed
from scenarios.speech import transcribe
from scenarios.storing import stored_and_loaded

__all__ = [
    "abort_half",
    "adapters",
    "announced",
    "beams",
    "embed",
    "forget",
    "greatest_requests",
    "grow_and_shrink",
    "guessed",
    "lie_idle",
    "logprobs",
    "long_answer",
    "long_prompt_in_chunks",
    "look_at_unwritten_memory",
    "mixed_lengths",
    "overlong_prompt",
    "plan_with_an_absent_block",
    "reset_prefix_cache",
    "several_answers",
    "shared_prefixes",
    "stored_and_loaded",
    "touch_committed_block",
    "touch_uncommitted_block",
    "transcribe",
    "wait_to_be_killed",
]
