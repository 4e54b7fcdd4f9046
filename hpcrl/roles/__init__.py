"""The loops: what an actor and a learner do, in the order of the data's way."""
