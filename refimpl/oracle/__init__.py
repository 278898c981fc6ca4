"""The oracle: does an engine compute what the reference computes, and if not, which bug is it?"""
