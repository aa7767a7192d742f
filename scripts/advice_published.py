"""What the adviser's rule says of batch and steps that others published, at the gradients that they spent.

    python scripts/advice_published.py

For each recipe: the published batch and steps and their bound, and the row that the rule recommends for at most as many
gradients. Noise is the estimate of ``privacy/advice.py`` (central limit theorem); nothing is trained.
"""

from __future__ import annotations

from dptrain.privacy.advice import Question, Row, above_the_wall, best_buy, frontier, gaussian_mu, grid, likely_noise

RECIPES = (
    # name, N, D, epsilon, delta, batch, steps
    ("CIFAR-10 WRN-16-4, De 2022", 50_000, 2_742_506, 1.0, 1e-5, 4096, 725),
    ("CIFAR-10 WRN-16-4, Sander 2023", 50_000, 2_742_506, 8.0, 1e-5, 4096, 2500),
    ("ImageNet NF-ResNet-50, De 2022", 1_281_167, 25_557_032, 8.0, 8e-7, 16_384, 71_589),
    ("ImageNet NF-ResNet-50, Sander 2023", 1_281_167, 25_557_032, 8.0, 8e-7, 32_768, 18_000),
    ("Fashion-MNIST tanh CNN, Tramer 2021", 60_000, 26_010, 3.0, 1e-5, 2048, 1172),
    ("Fashion-MNIST scatter linear, same", 60_000, 39_700, 3.0, 1e-5, 8192, 293),
    ("MNIST tanh CNN, same", 60_000, 26_010, 3.0, 1e-5, 512, 4688),
)


def main() -> None:
    """See above."""
    columns = f"{'B x T':>17}{'sigma':>7}{'kept':>6}{'bound':>8}"
    print(f"{'recipe, then what is advised':<38}{columns}   {columns}")
    for name, size, parameters, epsilon, delta, batch, steps in RECIPES:
        question = Question(
            public_size=size,
            num_parameters=parameters,
            epsilon=epsilon,
            delta=delta,
            adjacency="zero_out",
            sensitivity_slack=1e-3,
            fewest_steps=5.0,
            whole=lambda event: event,
        )
        mu = gaussian_mu(epsilon, delta)
        theirs = Row(batch=batch, steps=steps, noise_multiplier=likely_noise(mu, batch / size, steps))
        longer = [round(31.25 * 2 ** (k / 2)) for k in range(26)]
        rows = [r for r in grid(question, [], longer, mu) if r.gradients <= theirs.gradients]
        rows = above_the_wall(rows, question, 0.9)
        ours = best_buy(frontier(rows, question, lambda r: r.gradients), question, lambda r: r.gradients, 0.1)
        print(f"{name:<38}{_told(theirs, question)}   {_told(ours, question)}")


def _told(row: Row, question: Question) -> str:
    size = f"{row.batch:>8,.0f} x {row.steps:>6,}{row.noise_multiplier:>7.2f}"
    return f"{size}{row.kept(question):>6.0%}{row.bound(question):>8.4f}"


if __name__ == "__main__":
    main()
