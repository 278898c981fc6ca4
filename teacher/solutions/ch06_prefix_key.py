import hashlib

import numpy as np


def prefix_key(parent, token_ids, base, p, adapters):
    parts = [parent, np.asarray(token_ids, np.int64).tobytes(), base, repr(p).encode()]
    parts += [digest + np.float64(weight).tobytes() for digest, weight in adapters]
    return hashlib.sha256(b"".join(parts)).digest()
