"""Tensor parallelism: one model and its adapters on several ranks (processes, each with a GPU of its own, or threads).

    x, whole on every rank                                     (a rank is one of the processes here; r is the adapter's)
       |
    q k v, gate up      column-parallel: a rank has some of the outputs    W: rows    A: whole      B: rows
       |                nothing is sent: attention and the activation need a rank's own heads and columns alone
    o, down             row-parallel: a rank has some of the inputs        W: columns A: columns    B: whole
       |                every rank has a part of every sum, delta included
    all-reduce          one for W x and B A x together: x, whole on every rank

The cuts of W are Megatron's (Shoeybi et al. 2019), those of A and B vLLM's and TensorRT-LLM's; S-LoRA (Sheng et al.
2023) cuts both, which vLLM calls `fully_sharded_loras` (fully_sharded.py). The embedding is row-parallel (its inputs
are one-hot rows over the vocabulary) and the lm_head column-parallel, with an all-gather behind it.

model.forward is the same on every rank, over a part of the model (shards.py) and with a backend (backend.py) whose
`all_reduce` and `all_gather` are real. layout.py says what is cut where; communicator.py, threads.py, mpi.py and
nccl.py are how ranks talk; traffic.py counts what they send.
"""
