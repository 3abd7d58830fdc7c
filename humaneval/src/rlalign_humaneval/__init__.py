"""Human evaluation: a page on which people rate responses blindly, and the statistics of their answers."""
