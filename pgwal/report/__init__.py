"""What a report on a repository says: a document, made of what others have read."""
