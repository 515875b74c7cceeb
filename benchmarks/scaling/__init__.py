"""How several processes as one learner scale: measured here, and predicted for more."""
