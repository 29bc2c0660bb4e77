"""Files to prepared images, and the cache that keeps them."""
