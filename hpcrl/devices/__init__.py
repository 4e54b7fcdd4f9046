"""What learners compute on beside the CPU: which there are, whose each is, its memory and its queues."""
