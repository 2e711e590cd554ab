"""`live_wild`: LIVE In the Wild Image Quality Challenge Database."""
