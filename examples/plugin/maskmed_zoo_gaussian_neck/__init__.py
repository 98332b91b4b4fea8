"""A plug-in for maskmed-zoo: one neck, its card, and an entry point. Nothing here runs when names are listed."""
