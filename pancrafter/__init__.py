"""Pan-sharpening of satellite archives: from STAC items to sharpened, assessed, published STAC items."""
