def select_victim(last_used, ref_counts):
    idle = [slot for slot in last_used if not ref_counts.get(slot)]
    return min(idle, key=lambda slot: last_used[slot]) if idle else None
