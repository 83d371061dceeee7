"""Pages for people: one self-contained HTML file, its drawings and its texts made safe to show."""
