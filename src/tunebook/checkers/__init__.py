"""Is this answer right, or how good is it?"""
