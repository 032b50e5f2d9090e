"""MLM-Filter: a vision-language model is asked how good a picture and its caption are, and answers with a number.

`prompts` asks, `local` and `endpoint` get answers, `cache` keeps them, `digits` and `answers` make scores of them.
"""
