"""What people read: progress, tables, figures, messages, JSON documents, JUnit."""
