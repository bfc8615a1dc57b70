"""Training and evaluation of face deepfake classifiers, on the crops that serving will see."""
