"""`oasis`: the Open Affective Standardized Image Set, with ratings of beauty."""
