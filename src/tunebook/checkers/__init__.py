"""Is this answer right?"""
