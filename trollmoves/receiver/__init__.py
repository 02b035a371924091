"""The taking half of a conversation: hears of files, and has them sent from whichever source answers."""
