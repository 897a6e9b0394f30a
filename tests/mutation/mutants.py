"""The mistakes that :mod:`mutate` makes, one at a time, and the tests that have to notice.

The text of a mistake is looked for in the whole of ``src``, so that code may move; where the code's
wording changes, so does the entry. Test files are looked for below ``tests`` by name, or by folder
and name; every name must be there, else nothing is run.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake: what is wrong, text of the code, what it becomes, and test files by name."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutant(name: str, old: str, new: str, *tests: str) -> Mutant:
    """Return a mistake."""
    return Mutant(name, old, new, tests)


_RIDGE = ("test_ridge.py",)
_MERGE = ("test_merge.py",)
_STATISTICS = ("evaluation/test_statistics.py",)
_TREE = ("test_scoring.py", "test_likelihood.py")
_AXES = ("test_permutations.py",)
_ALIGN = ("test_token_alignment.py",)

MUTANTS = (
    mutant(
        "interval-without-width",
        "if found.interval.low != found.interval.high:",
        "if True:",
        *_STATISTICS,
    ),
    mutant(
        "prediction-beyond-the-anchors",
        "if not norm <= _MOST_NORM * largest:",
        "if False:",
        "mappers/test_from_anchors.py",
    ),
    # Ridge regression
    mutant(
        "ridge-loo-no-denominator",
        "((residual @ target_gram) * residual).sum(dim=1) / residual.diagonal().square()",
        "((residual @ target_gram) * residual).sum(dim=1) / residual.diagonal()",
        *_RIDGE,
    ),
    mutant(
        "ridge-penalty-not-over-n",
        "strength * float(centred_gram.trace()) / centred_gram.shape[0]",
        "strength * float(centred_gram.trace()) / (centred_gram.shape[0] - 1)",
        *_RIDGE,
    ),
    mutant(
        "ridge-loo-mean-not-retaken",
        "hat = torch.full_like(gram, 1 / n)",
        "hat = torch.zeros_like(gram) if not math.isinf(strength)"
        " else torch.full_like(gram, 1 / n)",
        *_RIDGE,
    ),
    mutant(
        "linear-map-penalty-not-over-d",
        "strength * trace / len(values)",
        "strength * trace",
        "test_linear_maps.py",
        "test_ridge.py",
    ),
    mutant(
        "held-out-r2-against-zero",
        "covariance = held_out.yy - shift - shift.mT + n * torch.outer(mean, mean)",
        "covariance = held_out.yy",
        "test_linear_maps.py",
        "test_ridge.py",
    ),
    # Principal components
    mutant(
        "pca-ridge-left-out-is-in-the-components",
        "others = [place for place in range(n) if place != left_out]",
        "others = list(range(n))",
        "test_pca.py",
    ),
    mutant(
        "pca-ridge-error-not-a-square",
        "target[left_out, left_out] - 2 * c @ target[left_out, others]",
        "target[left_out, left_out] - c @ target[left_out, others]",
        "test_pca.py",
    ),
    mutant(
        "pca-ridge-penalty-of-mean-variance",
        "strength * source.variances.sum()",
        "strength * source.variances.mean()",
        "test_pca.py",
    ),
    mutant(
        "principal-variances-over-n-minus-1",
        "vectors * signs * usable, values * usable / n)",
        "vectors * signs * usable, values * usable / (n - 1))",
        "test_svd.py",
        "test_pca.py",
    ),
    # Cross-LoRA
    mutant(
        "cross-lora-target-rows-flipped",
        "(update.A @ source.V[:, :k]) @ target.V[:, :k].mT",
        "(update.A @ source.V[:, :k]) @ target.V[:, :k].mT.flip(0)",
        "test_cross_lora.py",
    ),
    mutant(
        "cross-lora-sign-of-U-only",
        "svd._replace(U=svd.U * signs, V=svd.V * signs)",
        "svd._replace(U=svd.U * signs)",
        "test_cross_lora.py",
    ),
    mutant(
        "cross-lora-sign-not-fixed",
        "negative = -svd.U.amin(dim=0) > svd.U.amax(dim=0)",
        "negative = svd.U.amin(dim=0) > svd.U.amax(dim=0)",
        "test_cross_lora.py",
    ),
    # Merging and sparsifying
    mutant(
        "dare-sparsify-rescales-by-p",
        "self.seed, site, index), 1 / (1 - self.p)",
        "self.seed, site, index), 1 / self.p",
        "test_sparsify.py",
    ),
    mutant(
        "dare-merge-rescales-by-p",
        "* (t.weight / (1 - self.p))",
        "* (t.weight / self.p)",
        *_MERGE,
    ),
    mutant(
        "dare-keeps-what-it-drops",
        "torch.rand(delta.shape, generator=generator) >= p",
        "torch.rand(delta.shape, generator=generator) < p",
        "test_sparsify.py",
    ),
    mutant(
        "magnitude-rescale-keeps-the-norm",
        "share**-0.5, 1 / share)",
        "share**-0.5, share**-0.5)",
        "test_sparsify.py",
    ),
    mutant(
        "ties-elects-by-count",
        "total = torch.stack(list(deltas)).sum(dim=0)",
        "total = torch.stack(list(deltas)).sign().sum(dim=0)",
        *_MERGE,
    ),
    mutant(
        "ties-keeps-the-minority",
        "torch.where(delta * sign > 0, delta, 0.0)",
        "torch.where(delta * sign < 0, delta, 0.0)",
        *_MERGE,
    ),
    mutant(
        "ties-mean-over-all",
        "torch.as_tensor(count).clamp_min(1)",
        "len(agreeing)",
        *_MERGE,
    ),
    mutant(
        "weight-average-is-a-sum",
        "if not self.averages:",
        "if self.averages or not self.averages:",
        *_MERGE,
    ),
    # Matching and transport
    mutant(
        "plan-output-normalised-over-the-wrong-axis",
        "_normalised(self.joint, dim=0).to(rows)",
        "_normalised(self.joint, dim=1).to(rows)",
        *_AXES,
    ),
    mutant(
        "plan-input-normalised-over-the-wrong-axis",
        "_normalised(self.joint, dim=1).to(columns)",
        "_normalised(self.joint, dim=0).to(columns)",
        *_AXES,
    ),
    mutant(
        "rebasin-permutes-the-wrong-axis",
        "if source.role in OUTPUT_PROJECTIONS:\n            read, written",
        "if source.role not in OUTPUT_PROJECTIONS:\n            read, written",
        "test_matching.py",
    ),
    mutant(
        "transport-marginals-not-uniform",
        "np.full(source, 1 / source)",
        "np.arange(1, source + 1) * (2 / (source * (source + 1)))",
        "test_permutations.py",
    ),
    mutant(
        "transport-pairs-what-differs",
        "return 1 - similarity.cosine.double()",
        "return 1 + similarity.cosine.double()",
        "test_permutations.py",
    ),
    mutant(
        "assignment-of-least-gain",
        "maximize=True",
        "maximize=False",
        "test_permutations.py",
    ),
    mutant(
        "procrustes-transposed",
        "return u[:, :rank] @ vt[:rank], rank",
        "return u[:, :rank] @ u[:, :rank].mT @ vt[:rank].mT @ vt[:rank]"
        " if u.shape != vt.shape else vt[:rank].mT @ u[:, :rank].mT, rank",
        "test_procrustes.py",
    ),
    mutant(
        "procrustes-keeps-the-reflection",
        "torch.linalg.det(matrix) > 0",
        "torch.linalg.det(matrix) < 0",
        "test_procrustes.py",
    ),
    mutant(
        "procrustes-scale-of-all-of-x",
        "float((matrix * moments.xy).sum()) / power",
        "float((matrix * moments.xy).sum()) / float(moments.xx.trace())",
        "test_procrustes.py",
    ),
    mutant(
        "relative-depth-rounded-down",
        "(2 * layer * last + steps) // (2 * steps)",
        "(layer * last) // steps",
        "test_layer_matching.py",
    ),
    mutant(
        "layer-path-backwards",
        "return tuple(reversed(path))",
        "return tuple(path)",
        "test_layer_matching.py",
    ),
    # Similarity of layers
    mutant(
        "cka-diagonal-kept",
        "hollow = gram - torch.diag(gram.diagonal())",
        "hollow = gram.clone()",
        "test_similarity.py",
    ),
    mutant(
        "cka-not-centred",
        "result = hollow - rows[:, None] / (n - 2) - rows / (n - 2) + whole",
        "result = hollow + 0 * whole",
        "test_similarity.py",
    ),
    mutant(
        "cka-rbf-bandwidth-not-squared",
        "(2 * bandwidth**2 * median)",
        "(2 * bandwidth * median)",
        "test_similarity.py",
    ),
    mutant(
        "jaccard-of-layers-counts-the-common-twice",
        "most = 2 * self.neighbours - common if self.union",
        "most = 2 * self.neighbours + 0 * common if self.union",
        "test_similarity.py",
    ),
    mutant(
        "rsa-of-values-not-ranks",
        "torch.from_numpy(rankdata(dissimilarity[i, j].numpy()))",
        "dissimilarity[i, j]",
        "test_similarity.py",
    ),
    mutant(
        "svcca-correlates-the-fitted-rows",
        "_centred(x[:, held_out]), _centred(y[:, held_out])",
        "_centred(x[:, fitted]), _centred(y[:, fitted])",
        "test_similarity.py",
    ),
    # CAST
    mutant(
        "cast-writes-the-change-alone",
        "self.output_projection(before + change)\n"
        "        return self.weight * (after - self.output_projection(before))",
        "self.output_projection(change)\n"
        "        return self.weight * (after - self.output_projection(0 * change))",
        "test_cartridge.py",
        "test_cast.py",
    ),
    mutant(
        "cast-forgets-the-scale",
        "update.B.float() * update.scale",
        "update.B.float()",
        "test_cartridge.py",
        "test_cast.py",
    ),
    mutant(
        "cast-reading-head-without-bias",
        "self.skip.bias.copy_(bias)",
        "self.skip.bias.zero_()",
        "test_heads.py",
        "test_cast.py",
    ),
    # Reading adapters and prompts
    mutant(
        "rslora-scale-without-the-root",
        "alpha / rank**0.5 if",
        "alpha / rank if",
        "test_peft_io.py",
    ),
    mutant(
        "prompt-not-cut",
        'self.prompt.replace("{text}", text[: self.text_chars])',
        'self.prompt.replace("{text}", text)',
        "test_prompts.py",
    ),
    mutant(
        "gguf-kept-under-its-name-alone",
        'Key.of("models", gguf=self.gguf_hash(cache))',
        'Key.of("models", gguf=self.name)',
        "test_loading.py",
        "test_store.py",
    ),
    # Two tokenizers
    mutant(
        "align-first-piece-ends",
        "        if end <= earliest:\n            found.append((after[end], place))",
        "        found.append((after[end], place))",
        *_ALIGN,
    ),
    mutant(
        "align-characters-not-bytes",
        "accumulate(len(character.encode()) for character in text)",
        "accumulate(1 for character in text)",
        *_ALIGN,
    ),
    mutant(
        "align-skip-one-side",
        "if source.places[end] >= skip and target.places[end] >= skip",
        "if source.places[end] >= skip",
        *_ALIGN,
    ),
    mutant(
        "align-joiner-ignored",
        '    if following in _JOINERS or unicodedata.category(following).startswith("M"):\n'
        "        return True\n",
        "",
        *_ALIGN,
    ),
    # Likelihoods of labels
    mutant(
        "label-tree-mask-without-ancestors",
        "sees[node] |= sees[parent]",
        "pass",
        *_TREE,
    ),
    mutant("label-tree-window-off-by-one", "(distance < window)", "(distance <= window)", *_TREE),
    mutant(
        "label-likelihood-mean-over-tokens",
        "(logits[:, behind, tokens] - normaliser[:, behind]).sum(dim=1)",
        "(logits[:, behind, tokens] - normaliser[:, behind]).mean(dim=1)",
        *_TREE,
    ),
    mutant(
        "labels-that-begin-others-always-win",
        "answer_tokens(base.tokenizer, question).values()), exclusive=True)",
        "answer_tokens(base.tokenizer, question).values()), exclusive=False)",
        *_TREE,
    ),
    # Distillation
    mutant(
        "label-loss-normalised-over-labels",
        "-(batch.targets.to(found) * found).sum(dim=1).mean()",
        "-(batch.targets.to(found) * found.log_softmax(dim=1)).sum(dim=1).mean()",
        "test_label_distillation.py",
    ),
    mutant(
        "label-loss-hard-target",
        "-(batch.targets.to(found) * found).sum(dim=1).mean()",
        "-found.gather(1, batch.targets.argmax(1, keepdim=True).to(found.device)).mean()",
        "test_label_distillation.py",
    ),
    mutant(
        "teacher-temperature-multiplied",
        "(scores / temperature).softmax(dim=1)",
        "(scores * temperature).softmax(dim=1)",
        "test_label_distillation.py",
    ),
    mutant(
        "student-scale-lost",
        "(u[:, :kept] * sigma[:kept] / (row * self.scale)).to(b)",
        "(u[:, :kept] * sigma[:kept] / row).to(b)",
        "test_trainer.py",
    ),
    mutant(
        "chunk-likelihood-not-normalised",
        "chosen - logits.logsumexp(dim=2)",
        "chosen - logits.amax(dim=2)",
        "test_teacher_generations.py",
    ),
    mutant(
        "chunk-divergence-weighted-by-the-student",
        "same = log_p.exp() * (log_p - log_q)",
        "same = log_q.exp() * (log_p - log_q)",
        "test_sequence_distillation.py",
    ),
    mutant(
        "held-out-texts-of-the-pool",
        "seen = {*learned, *self._generic_texts(data, TRAIN, self.pool)}",
        "seen = set(learned)",
        "test_label_distillation.py",
    ),
    mutant(
        "balanced-texts-least-confident-first",
        "-float(confidences[index])",
        "float(confidences[index])",
        "test_text_selection.py",
    ),
    mutant(
        "kl-budget-smallest-scale",
        "max(within, default=0.0)",
        "min(within, default=0.0)",
        "test_kl_budget.py",
    ),
    mutant(
        "training-resumed-without-its-optimizer",
        'trainer.optimizers[0].load_state_dict(self._optimizer_state["optimizer"])',
        "pass",
        "test_trainer.py",
    ),
    # Texts and tasks
    mutant("test-rows-in-training", "if key and key not in seen:", "if key:", "test_tasks.py"),
    mutant(
        "corpus-split-of-its-own-ignored",
        "(own or split_of(text, self.validation_share)) == split",
        "split_of(text, self.validation_share) == split",
        "test_text_sources.py",
    ),
    # KL divergence
    mutant(
        "kl-backwards",
        "gain = other - base\n    share = base.exp()",
        "base, other = other, base\n    gain = other - base\n    share = base.exp()",
        "test_kl.py",
    ),
    mutant(
        "js-not-halved",
        "shares.clamp_min(0).sum(dim=-1) / 2",
        "shares.clamp_min(0).sum(dim=-1)",
        "test_kl.py",
    ),
    # Statistics and verdicts
    mutant(
        "bootstrap-not-paired",
        "block[:, index] = column[places].mean(dim=1)",
        "block[:, index] = column[torch.randint(rows, (len(block), rows),"
        " generator=generator)].mean(dim=1)",
        *_STATISTICS,
    ),
    mutant(
        "bootstrap-tasks-not-resampled",
        "chosen = torch.randint(len(tables), (draws, len(tables)), generator=generator)",
        "chosen = torch.arange(len(tables)).expand(draws, -1)",
        *_STATISTICS,
    ),
    mutant(
        "bootstrap-level-90",
        "_LEVEL = 0.95\n_BLOCK",
        "_LEVEL = 0.90\n_BLOCK",
        *_STATISTICS,
    ),
    mutant(
        "bootstrap-headroom-ignored-in-draws",
        "usable = gap >= HEADROOM - 1e-9",
        "usable = gap > 0",
        *_STATISTICS,
    ),
    mutant(
        "mcnemar-one-sided",
        "binomtest(gained, changed).pvalue",
        'binomtest(gained, changed, alternative="less").pvalue',
        *_STATISTICS,
    ),
    mutant(
        "mcnemar-counts-what-lost-twice",
        "gained = int(((before == 0) & (after == 1)).sum())",
        "gained = int(((before == 1) & (after == 0)).sum())",
        *_STATISTICS,
    ),
    mutant(
        "spearman-ties-do-not-share-ranks",
        "(alike.cumsum(dim=1) - alike / 2)",
        "(alike.cumsum(dim=1) - alike)",
        *_STATISTICS,
    ),
    mutant(
        "recovery-residual-of-the-fitted",
        "others = torch.arange(len(y)) != index",
        "others = torch.arange(len(y)) >= 0",
        "test_expected_recovery.py",
    ),
    mutant(
        "recovery-quantile-of-n",
        "math.ceil((len(y) + 1) * _LEVEL)",
        "math.ceil(len(y) * _LEVEL)",
        "test_expected_recovery.py",
    ),
    mutant(
        "h1-supported-without-a-lower-end",
        "low is not None and low > SURELY_RECOVERED and run.merit > RECOVERED",
        "run.merit > RECOVERED",
        "test_verdict.py",
    ),
    mutant(
        "h1-supported-without-a-margin",
        "return recovers and beats and not",
        "return recovers and not",
        "test_verdict.py",
    ),
    mutant(
        "h2-supported-by-a-target-that-never-refuses",
        'elif silent:\n        state = "cannot be told"',
        'elif not told:\n        state = "open"',
        "test_verdict.py",
    ),
    mutant(
        "go-for-a-port-that-learned-nothing",
        "elif not _is_sure(rise):",
        "elif rise.items < 0:",
        "test_porting.py",
    ),
    # What is kept
    mutant(
        "statistics-in-autocast",
        "return torch.autocast(device.type, enabled=False)",
        "return suppress()",  # as the trainer has it
        "test_linear_text.py",
    ),
    mutant(
        "changed-activations-are-used",
        "if digest.hexdigest() != checksum:",
        "if False:",
        "test_capture.py",
    ),
    mutant(
        "state-goes-before-the-result",
        "_finished[-1].append((self, key))",
        "self.drop(key)",
        "refinement/test_trainer.py",
    ),
    # Files and names of others
    mutant(
        "control-characters-are-printed",
        'return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in folded)',
        "return folded",
        "test_console.py",
    ),
    mutant(
        "cards-are-not-escaped",
        "finalize=lambda value: value if isinstance(value, Markup) else markdown_text(str(value)),",
        "",
        "test_cards.py",
    ),
)
