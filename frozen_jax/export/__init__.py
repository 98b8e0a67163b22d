"""Floor 4: file formats for trained parameters: adapter folders, PEFT prompts, cross-encoders."""
