"""The world: digits in several colours on photographs, captions, and questions that name a colour or a place."""
