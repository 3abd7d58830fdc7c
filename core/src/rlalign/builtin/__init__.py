"""What ships with the core, written as any plugin is: it imports what a plugin may."""
