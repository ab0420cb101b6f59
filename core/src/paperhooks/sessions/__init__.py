"""What a session is made of: calls under way, undoing, removal from copies."""
