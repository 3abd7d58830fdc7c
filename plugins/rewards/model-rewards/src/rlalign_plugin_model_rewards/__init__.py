"""Models as rewards: classifiers, reward models, perplexity, BERTScore, SummaC, BARTScore, embeddings, a judge."""
