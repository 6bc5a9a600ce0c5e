"""The guestbook's one table."""

from django.db import models


class Entry(models.Model):
    """What one visitor wrote."""

    author = models.CharField(max_length=80)
    message = models.TextField(max_length=500)
    created = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        ordering = ("-created", "-id")
        verbose_name_plural = "entries"

    def __str__(self) -> str:
        return f"{self.author}: {self.message[:40]}"
