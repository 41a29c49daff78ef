"""Answers as models write them, with the number that each gives; None where it gives none."""

from __future__ import annotations

PLAIN = [  # around a number N, by itself
    "{}", " {} ", "{}.", "{}!", "{}\n", "\n\n{}", "**{}**", "*{}*", "__{}__", "`{}`", "({})", "[{}]", "<{}>", '"{}"',
    "'{}'", "“{}”", "# {}", "> {}", "- {}", "1. {}", "= {}", "={}", "≈ {}", "~{}", "→ {}", "=> {}", "{} <eos>", "${}$",
    "\\({}\\)", "\\[ {} \\]", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "\\[\\boxed{{{}}}\\]", "\\boxed {{{}}}",
    "\\fbox{{{}}}", "\\boxed{{{} \\text{{ apples}}}}", "\\boxed{{x = {}}}", "\\mathbf{{{}}}", "\\textbf{{{}}}",
    "#### {}", "####{}", "#### {} apples", "<answer>{}</answer>", "Answer: {}", "ANSWER: {}", "A: {}", "answer = {}",
    "Answer is {}", "**Answer:** {}", "**Answer: {}**", "Final Answer: {}", "The final answer is {}.",
    "The answer is {}.", "The answer is: {}", "The answer is:\n\n{}", "the answer is **{}**.",
    "The correct answer is {}", "So the answer is {} apples.", "Therefore, the answer is ${}$.",
    "The answer is approximately {}.", "The answer to the question is {}.", "My answer would be: {}",
    "The answer equals {}", "Result: {}", "The result is {}", "Total: {}", "Total = {}", "The total is {}",
    "The total number of pears is {}.", "The solution is {}", "x = {}", "so x={}", "Thus, n = {}",
    "She has {} apples left.", "so she has {} left", "Ann needs {} more.", "It takes {} hours.",
    "It costs {} dollars.", "They made {} in total", "There are {} of them in all", "That's {}", "It's {}.",
    "Hence {}", "Therefore {}", "We get {}", "which gives {}", "I think it is {}.", "You need {} cups of flour.",
    "{} is the answer", "{} apples", "{} kg", "{} cm^", "{} m/s", "{} people were there", "about {} people",
    "exactly {}", "at most {}", "only {}!",
]  # fmt: skip

STORY = [  # other numbers stand before or behind the one that is the answer
    "3 + 4 = 7. The answer is {}.", "First 3, then 4.\nThe answer is {}.",
    "Step 1: 12 pears.\nStep 2: 5 more.\n#### {}", "<<3+4=7>>7 pears are left. #### {}",
    "There are 3 boxes of 4, so {}", "1. 3 boxes\n2. 4 pears each\nTotal: {}",
    "Of the 20, half are red. So there are {} red ones.", "In 2019 there were 30; now there are {}",
    "He had 5, 6 and 7. In all {}", "100% of 8 is 8, so \\boxed{{{}}}", "\\boxed{{5}} is wrong. Rather \\boxed{{{}}}",
    "The answer is 5. No, the answer is {}.", "Answer: 4\nWait. Answer: {}", "Since 3 < 5, x = {}",
    "The answer is 3 + 4 = {}", "The total is 3 x 4 = {} pears", "The result is 20 / 4 + 1 = {}.",
    "Total: 10 - 3 - 2 = {}", "The answer is \\frac{{1}}{{2}} \\times 8 = {}", "The answer is {} (3 boxes of 4).",
    "The answer is {}, since 3 x 4 = 12", "The answer is {} of the 40.", "The answer is {}; 3 were left out.",
    "The answer is {}.\n\nQ: What is next? It has 3.", "\\boxed{{{}}} since 3 of the 9 are out", "#### {} (out of 30)",
    "Answer: {}, not 13", "The answer is not 13 but {}.",
]  # fmt: skip

VALUES = [  # how a number is written, and what it is
    ("7", "7"), ("0", "0"), ("12", "12"), ("1234", "1234"), ("1,234", "1234"), ("12,345,678", "12345678"),
    ("1{,}234", "1234"), ("1\u202f234", "1234"), ("3.14", "157/50"), ("0.5", "1/2"), ("18.00", "18"), ("$18.00", "18"),
    ("$1,234.50", "2469/2"), ("€20", "20"), ("£7.25", "29/4"), ("₹500", "500"), ("-3", "-3"), ("−3", "-3"),
    ("-0.5", "-1/2"), ("-$5", "-5"), ("3/4", "3/4"), ("22/7", "22/7"), ("2 1/2", "5/2"), ("½", "1/2"),
    ("\\frac{3}{4}", "3/4"), ("\\dfrac{5}{8}", "5/8"), ("\\frac12", "1/2"), ("1.5e3", "1500"), ("2e-3", "1/500"),
    ("1.5×10^3", "1500"), ("1.5 \\times 10^{3}", "1500"), ("6 \\cdot 10^2", "600"), ("1.5×10³", "1500"),
    ("4×10⁻²", "1/25"), ("3 million", "3000000"), ("2.5 thousand", "2500"), ("25%", "25"), ("25\\%", "25"),
    ("25 percent", "25"), ("１２", "12"), ("٣٤", "34"), ("९", "9"), ("negative 4", "-4"),
]  # fmt: skip

WORDS = [
    ("twelve", "12"), ("Twelve", "12"), ("TWENTY-ONE", "21"), ("twenty one", "21"), ("ninety-nine", "99"),
    ("zero", "0"), ("a hundred", "100"), ("one hundred", "100"), ("one hundred and five", "105"),
    ("two hundred thirty-four", "234"), ("one thousand", "1000"), ("twelve hundred", "1200"),
    ("three thousand four hundred and six", "3406"), ("a million", "1000000"),
    ("two million five hundred thousand", "2500000"), ("minus three", "-3"), ("negative twelve", "-12"),
    ("three point one four", "157/50"), ("zero point five", "1/2"), ("two and a half", "5/2"), ("one half", "1/2"),
    ("three quarters", "3/4"), ("two thirds", "2/3"), ("five eighths", "5/8"), ("a dozen", "12"),
    ("half a dozen", "6"), ("seventeen", "17"), ("forty", "40"), ("nineteen", "19"), ("five percent", "5"),
]  # fmt: skip

IN_WORDS = [
    "{}", "{}.", "The answer is {}.", "Answer: {}", "answer: **{}**", "She has {} apples left.", "It takes {} hours",
    "\\boxed{{\\text{{{}}}}}", "The answer is about {}.", "There are 3 boxes of 4, so the answer is {}.", "#### {}",
    "The total is exactly {}, as 5 is too few.", "So, {} it is",
]  # fmt: skip

ODD = [
    ("She has twelve (12) apples.", "12"), ("The answer is twelve (12).", "12"), ("The answer is one.", "1"),
    ("Just one", "1"), ("one", "1"), ("The answer is one of these: 5", "5"), ("It is the last one, 7", "7"),
    ("x = - 3", "-3"), ("x = –3", "-3"), ("\\boxed{- 3}", "-3"), ("the answer is minus 3", "-3"),
    ("5 minus 3 is 2", "2"), ("- 3 apples", "3"), ("x-1", "1"), ("3–5", "5"), ("pages 3-5", "5"), ("(-3)", "-3"),
    ("|-3|", "-3"), ("y=-2x+1", "1"), ("≈ 3.14", "157/50"), ("5 apples\n\n", "5"), ("5.", "5"), ("5..", "5"),
    ("5...", "5"), ("$5.", "5"), ("5,", "5"), ("12 or 12.0", "12"), ("3 or more, I say 5", "5"),
    ("The answer is 12 or so", "12"), ("Is it 3? No, 4.", "4"), ("\\boxed{}", None), ("\\boxed{} 5", "5"),
    ("\\boxed{none} of 5", "5"), ("\\boxed{5", "5"), ("\\boxed{\\boxed{6}}", "6"),
    ("The answer is 5. I hope that answer is fine.", "5"), ("answer", None), ("The answer is", None), ("#### ", None),
    ("1,2,3", "3"), ("1,234,5", "5"), ("0012", "12"), ("1.2.3", None), ("2026-05-01", None), ("5th", "5"),
    ("No. 5", "5"), ("12:30", "30"), ("2^10", "10"), ("10²", "10"), ("5!", "5"), ("3/0", None), ("1e999", None),
    ("9" * 100, None), ("5 = x", "5"), ("7 = 3 + 4", "4"), ("The answer is 7 = 3 + 4", "7"), ("5 R 2", "2"),
    ("a hundred and the rest", "100"), ("five six", "6"), ("twenty-one thousand", "21000"), ("two dozen", "2"),
    ("2 dozen", "2"), ("twentyone", None), ("between 3 and 5", None), ("The answer is between 3 and 5.", None),
    ("12 or 13", None), ("either 12 or 13", None), ("The answer is 12 or 13.", None), ("12 apples or 13 apples", None),
    ("It could be 4, or 5", None), ("", None), (" ", None), ("\n", None), (".", None), ("-", None), ("$", None),
    ("%", None), ("N/A", None), ("?", None), ("I cannot answer that.", None),
    ("I'm sorry, but I can't help with that.", None), ("I don't know.", None),
    ("There is not enough information.", None), ("None of the above", None), ("The answer is unknown.", None),
    ("As a language model, I do not compute.", None), ("no one knows", None), ("everyone", None), ("someone", None),
    ("often weigh", None), ("the first", None), ("a second", None), ("tenth", None), ("thousands of them", None),
    ("hundreds", None), ("dozens", None), ("\u200b", None), ("½ of it", "1/2"), ("it's 3½", "7/2"),
    ("0.333...", "333/1000"), ("The answer is 1/3 of 9 = 3", "1/3"), ("3 hundred", "300"), ("$3 million", "3000000"),
    ("1.234,5", "5"), ("5k", "5"),
]  # fmt: skip
