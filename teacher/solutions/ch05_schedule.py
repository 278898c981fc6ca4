def schedule(missing, budget):
    tokens = []
    for n in missing:
        tokens.append(min(n, budget))
        budget -= tokens[-1]
    return tokens
