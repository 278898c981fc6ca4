"""Chapter 5: who computes how many tokens in this step?

loracle learn check        is it right?
loracle learn hint         a hint; there are three
"""


def schedule(missing, budget):
    """Return how many tokens each request computes in this step: a list of whole numbers, one for each request.

    missing    how many tokens each request lacks, in the order in which they came: [26, 1, 9]; each is 1 or more
    budget     how many tokens the step has in all, 1 or more

    A request may get a part of what it lacks, or 0.
    """
    raise NotImplementedError
