"""Tables of URLs and captions, and what is fetched from them."""
