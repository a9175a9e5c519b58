output "bucket" {
  description = "For places in infra/kuberay/overlays/a100/kustomization.yaml."
  value       = aws_s3_bucket.this.bucket
}

output "image_repository" {
  description = "For images in the same file."
  value       = aws_ecr_repository.this.repository_url
}

output "role_arns" {
  description = "For the service accounts in the same file."
  value       = { for name in keys(local.of_bucket) : "counterray-${name}" => aws_iam_role.pod[name].arn }
}

output "kubeconfig_command" {
  description = "Points kubectl at the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}
