"""Chat templates: how turns become text and text becomes tokens, read off the template's own renderings."""
