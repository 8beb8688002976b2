"""Which network looks at which field of the sides: single images, frames of clips, or whole clips."""
