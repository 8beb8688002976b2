"""Drawing under pictures: which conditions files become, how large the images are that follow, and cascades of stages."""
