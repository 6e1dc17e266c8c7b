"""The human study of two systems: blinded tasks out, answers in, what they show."""
