"""`savoias`: how complex people find pictures of four kinds."""
