"""Is a fine-tuned encoder better than a frozen one, and than one trained from scratch?"""
