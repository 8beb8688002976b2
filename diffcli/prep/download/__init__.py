"""Tables of URLs and captions, and downloads from them."""
