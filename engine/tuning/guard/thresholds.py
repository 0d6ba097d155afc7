"""From which figure on the guard warns, and why. docs/tuning.md has the reasons at length."""

from __future__ import annotations

# OpenAI's fine-tuning guide asks for at least 10 examples and sees clear improvements from 50 to 100 on.
REFUSE_BELOW_DISTINCT = 10
FEW_DISTINCT = 50
# Below, a share of right answers is known to +-14 points (95 %) at best, so the best adapter is picked by chance.
FEW_VALIDATION = 50
# Half of the rows are copies: three epochs are six of each example. At nine tenths they are thirty.
NEAR_SHARE_RISKY, NEAR_SHARE_REFUSE = 0.5, 0.9
# At most one of two contradicting rows can be right, so half of this share is wrong whatever is trained.
CONTRADICTING_RISKY, CONTRADICTING_REFUSE = 0.02, 0.2
# A leaked row counts as right without being a test: the figure rises by up to the share times its distance from 1.
LEAKED_RISKY, LEAKED_REFUSE = 0.05, 0.5
# Naive Bayes reaches 0.60 on banking77 with 10 examples of each label, and 0.86 with all (130 of each).
FEW_OF_A_LABEL = 10
# Whoever always says the most frequent label is right this often; a model learns just that.
MOST_FREQUENT_LABEL = 0.95
# Ordinary sets of questions lie at 0.01 to 0.08, forty paraphrases of one sentence at 0.25.
OVERLAP_RISKY = 0.15
# banking77 and SQuAD lie at 0.77 and 0.86, the 16 sentence patterns of PopQA at 0.44, one pattern below 0.2.
DISTINCT_PAIRS_RISKY = 0.3
# Half of the texts have a paraphrase among the others.
NEAR_COSINE_SHARE_RISKY = 0.5
# One answer for half of the questions becomes the answer to all that are hard (OpenAI's guide: 60 % refusals in the
# data give an overabundance of them).
MOST_FREQUENT_TARGET_RISKY, MOST_FREQUENT_TARGET_REFUSE = 0.5, 0.95
UNANSWERABLE_RISKY = 0.5
# What the base model knows leaves little to learn; facts it does not know are learned slowly and cost what it knew
# (Gekhman et al., arXiv:2405.05904: 95.6 to 55.8 on facts known before).
KNOWN_RISKY, UNKNOWN_FACTS_RISKY = 0.8, 0.2
# Rows that are cut teach to stop in the middle.
TOO_LONG_RISKY = 0.01
BAD_ROWS_RISKY = 0.05
