"""The course's own tools, imported by notebooks only: checks of exercises, captioned figures, progress."""
