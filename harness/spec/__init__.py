"""What a person wrote (StudySpec) and what one training run uses (HParams). Pure: no disk but the study files."""
