"""What rows of each task teach, and how answers to them are judged.

row -> PromptEncoder -> EncodedExample, the tokens that serving reads and is to write
rows + AdapterModel -> Answer each -> metrics
"""
